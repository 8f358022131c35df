"""The HTTP edge: turns requests into calls of the service and its answers into JSON; decides nothing."""
