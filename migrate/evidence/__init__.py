"""What makes a record checkable by others: hash trees, samples, anchors, signatures."""
