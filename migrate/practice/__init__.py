"""A PACS to practise on: synthetic studies made from a seed, real DICOM over real sockets, bad manners by name."""
