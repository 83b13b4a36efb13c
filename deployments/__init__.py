"""How flows reach people: served to a Prefect server, so that the UI, a schedule or an API call can start them."""
