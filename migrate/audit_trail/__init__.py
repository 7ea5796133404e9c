"""DICOM audit messages (PS3.15 A.5) and where they go."""
