package spool

// childDir is set in the environment of a process that is a spool to be killed.
const childDir = "FAIRLEAD_TEST_SPOOL"

func child(string) int { return 0 }
