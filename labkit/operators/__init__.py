def register_operator(x): return x
def __getattr__(n):
    if n=="NotStackable":
        from labkit.training.stacking import NotStackable
        return NotStackable
    raise AttributeError(n)
