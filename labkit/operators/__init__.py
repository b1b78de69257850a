def register_operator(x): return x
def __getattr__(n):
    if n=="NotStackable":
        from labkit.operators.stacking import NotStackable
        return NotStackable
    raise AttributeError(n)
