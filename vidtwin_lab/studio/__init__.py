"""Looking at things in a browser: the studio's page, and curves of runs."""
