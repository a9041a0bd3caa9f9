"""From a canonical job to a stream of output events: resolve, render, check, admit, generate."""
