"""The nouns: readings, dead letters, the wire, and the dialects that devices speak."""
