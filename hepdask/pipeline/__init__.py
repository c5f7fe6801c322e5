"""The steps of the pipeline: each a public function, and a command of the same name."""
