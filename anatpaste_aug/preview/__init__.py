"""The preview: images, masks and pastes in one picture, and its command."""
