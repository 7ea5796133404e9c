"""A PACS that answers C-FIND and sends by C-MOVE: `move` is the source, and works with the rest."""
