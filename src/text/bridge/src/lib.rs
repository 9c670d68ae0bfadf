//! Hugging Face tokenizers and minijinja behind the C ABI of bridge.h.

mod abi;
mod clock;
mod generation;
mod json;
mod methods;
mod python;
mod template;
mod tokenizer;
