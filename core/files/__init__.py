"""Files written whole, the cache of what was encoded, and where this installation lies."""
