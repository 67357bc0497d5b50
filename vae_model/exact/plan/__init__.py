"""From a program, a shape and a budget to a plan: numbers in, numbers out; nothing is asked of the machine."""
