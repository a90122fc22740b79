"""Is the reward being gamed? Signals from each step's answers, a sequential test with a stated rate of false alarms."""
