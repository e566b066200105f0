"""The search server: an HTTP API and one page over an index. Parse, call, serialise; see docs/serving.md."""
