//! Hugging Face tokenizers and minijinja behind the C ABI of bridge.h.

mod abi;
mod arguments;
mod clock;
mod filters;
mod json;
mod methods;
mod python;
mod source;
mod stored;
mod template;
mod tokenizer;
