"""The numbers of the Mamba2 mixer: the recurrence, and the mixer around it, for every release."""
