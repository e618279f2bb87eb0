"""Many requests, few devices; knows no HTTP. Free of torch but for `worker`, which runs in the replica's process."""
