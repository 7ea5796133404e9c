"""The five steps of the way, each as small functions: enumerate, plan, retrieve, upload, verify."""
