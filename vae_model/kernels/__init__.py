"""How single operations are done on a kind of device; nothing of the engine is known here."""
