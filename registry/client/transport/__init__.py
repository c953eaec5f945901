"""HTTP: connections with retries, sockets, error answers, and an application in the same process."""
