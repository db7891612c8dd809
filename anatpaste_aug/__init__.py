"""Anatomy-aware synthetic anomalies for chest radiographs."""
