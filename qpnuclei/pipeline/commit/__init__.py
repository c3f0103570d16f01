"""The nuclei of an image from the run's folder into the project, once.

`commit_image` is the last step of an image: `new_nuclei` divides them by annotation and class,
`write_back` saves them, `replan` is for an image that was saved meanwhile, `same_image` compares
what the project file says with the plan, `copies` are the files beside the project.
"""
