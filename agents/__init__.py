"""Thin adapters between Faust's streams and the pure core: read, call one function, forward."""
