"""pacs-migrate: moves every image of an old PACS into object storage and proves that nothing is missing."""

__version__ = "0.1.0"
