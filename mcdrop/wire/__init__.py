"""What the HTTP client is made of: requests, answers, retries, tensors as bytes. Nothing here needs PyTorch."""
