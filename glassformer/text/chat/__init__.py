"""Chat templates: a conversation as token ids."""
