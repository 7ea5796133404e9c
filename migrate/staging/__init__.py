"""The files between the PACS and the destination: how they are written, kept and let go."""
