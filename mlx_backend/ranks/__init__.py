"""One model over several ranks: rank 0 schedules and samples, the others repeat the calls of its runner."""
