"""Programs that use the library as any user would."""
