"""The search for λ: a live field of weights, objectives, studies, reports."""
