"""What a PACS is like to talk to: `habits` asks for everything, by way of the rest."""
