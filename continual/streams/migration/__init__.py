"""Learn the tasks of one backbone again on another one."""
