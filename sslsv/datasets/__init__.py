"""From a CSV row to a batch of views."""
