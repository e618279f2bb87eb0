"""HTTP and nothing else. `app.build_app` is where models, engine and HTTP meet."""
