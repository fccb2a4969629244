"""The part "cache": hits in Redis, stampedes, an hour of chat, and which entries memory evicts."""
