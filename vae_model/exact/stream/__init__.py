"""Sources of rows, laid one on the other, and the passes that pull them; which op wants what is not known here."""
