"""Other hosts of the same application: Ray Serve and Hugging Face Inference Endpoints."""
