"""Buckets of object stores that speak S3: the destination itself is `bucket`, the rest is how it is reached."""
