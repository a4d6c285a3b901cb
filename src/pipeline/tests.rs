//! Placeholder list of modules: what the user sees (`errors`), what a file means (`meaning`).
