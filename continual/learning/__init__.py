"""Learn one task end to end: prepare, train, contest the champion, register, verify."""
