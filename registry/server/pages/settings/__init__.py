"""The pages of settings: namespaces with members, limits and retention; adapters; tokens; webhooks with deliveries."""
