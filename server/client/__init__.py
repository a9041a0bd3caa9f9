"""HTTP clients of a server, this one or another: for `pippin chat` and `pippin bench`, and for `bench/`."""
