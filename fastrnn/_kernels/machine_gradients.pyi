# Other compiled modules alone call this one; Python sees nothing in it.
