"""Token ids to token ids: draw replies under a grammar, stream them, and verify spoken candidates."""
