"""DICOM on the wire and on disk: associations, DIMSE, the receiver and the scanner. Bytes in, the same bytes out."""
