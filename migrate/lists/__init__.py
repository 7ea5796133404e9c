"""Files that people hand in: lists of studies, lists of accepted exceptions."""
