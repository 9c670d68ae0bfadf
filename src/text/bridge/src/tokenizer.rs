//! Byte-level tokenizers: loading, the bytes of every token, encoding.

use std::collections::HashMap;
use std::ffi::c_void;
use std::os::raw::c_char;

use tokenizers::tokenizer::AddedVocabulary;
use tokenizers::{DecoderWrapper, PostProcessorWrapper, PreTokenizerWrapper, Tokenizer};

use crate::abi::{guard, text, Failure, Kind, NibbleError};

const ADDED: u32 = 1;
const SPECIAL: u32 = 2;

pub struct NibbleTokenizer {
    full: Tokenizer,
    plain: Tokenizer,
}

fn failure(error: impl std::fmt::Display) -> Failure {
    Failure::new(Kind::Runtime, error.to_string())
}

fn splits_into_bytes(pre_tokenizer: &PreTokenizerWrapper) -> bool {
    match pre_tokenizer {
        PreTokenizerWrapper::ByteLevel(_) => true,
        PreTokenizerWrapper::Sequence(sequence) => sequence.as_ref().iter().any(splits_into_bytes),
        _ => false,
    }
}

fn load(json: &str) -> Result<NibbleTokenizer, Failure> {
    let mut full: Tokenizer = json.parse().map_err(failure)?;
    if !full.get_pre_tokenizer().is_some_and(splits_into_bytes)
        || !matches!(full.get_decoder(), Some(DecoderWrapper::ByteLevel(_)))
    {
        return Err(failure(
            "pre_tokenizer and decoder have to be ByteLevel; other kinds of tokenizer are not supported",
        ));
    }
    full.with_truncation(None).map_err(failure)?;
    full.with_padding(None);
    full.with_post_processor(None::<PostProcessorWrapper>);
    let mut plain = full.clone();
    plain.with_added_vocabulary(AddedVocabulary::new());
    Ok(NibbleTokenizer { full, plain })
}

/// The byte-level alphabet: printable Latin-1 stands for itself, the other bytes for U+0100 on.
fn bytes_of_characters() -> HashMap<char, u8> {
    let mut others = 0x100..;
    (0..=255u8)
        .map(|byte| match byte {
            b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF => (char::from(byte), byte),
            _ => (others.next().and_then(char::from_u32).expect("a character"), byte),
        })
        .collect()
}

fn for_each_token(tokenizer: &Tokenizer, mut visit: impl FnMut(u32, u32, &[u8])) {
    let alphabet = bytes_of_characters();
    let added = tokenizer.get_added_tokens_decoder();
    for (id, token) in &added {
        let special = if token.special { SPECIAL } else { 0 };
        visit(*id, ADDED | special, token.content.as_bytes());
    }
    for (token, id) in tokenizer.get_vocab(false) {
        if added.contains_key(&id) {
            continue;
        }
        let bytes: Option<Vec<u8>> = token.chars().map(|c| alphabet.get(&c).copied()).collect();
        visit(id, 0, bytes.as_deref().unwrap_or(token.as_bytes()));
    }
}

/// # Safety
/// See bridge.h.
#[no_mangle]
pub unsafe extern "C" fn nibble_tokenizer_load(
    json: *const c_char,
    size: usize,
    error: *mut NibbleError,
) -> *mut NibbleTokenizer {
    guard(error, || load(text(json, size)?))
        .map_or(std::ptr::null_mut(), |tokenizer| Box::into_raw(Box::new(tokenizer)))
}

/// # Safety
/// See bridge.h.
#[no_mangle]
pub unsafe extern "C" fn nibble_tokenizer_free(tokenizer: *mut NibbleTokenizer) {
    if !tokenizer.is_null() {
        drop(Box::from_raw(tokenizer));
    }
}

/// # Safety
/// See bridge.h.
#[no_mangle]
pub unsafe extern "C" fn nibble_tokenizer_tokens(
    tokenizer: *const NibbleTokenizer,
    sink: extern "C" fn(*mut c_void, u32, u32, *const c_char, usize),
    target: *mut c_void,
    error: *mut NibbleError,
) -> bool {
    guard(error, || {
        for_each_token(&(*tokenizer).full, |id, flags, bytes| {
            sink(target, id, flags, bytes.as_ptr().cast(), bytes.len())
        });
        Ok(())
    })
    .is_some()
}

/// # Safety
/// See bridge.h.
#[no_mangle]
pub unsafe extern "C" fn nibble_tokenizer_encode(
    tokenizer: *const NibbleTokenizer,
    data: *const c_char,
    size: usize,
    plain: bool,
    sink: extern "C" fn(*mut c_void, *const u32, usize),
    target: *mut c_void,
    error: *mut NibbleError,
) -> bool {
    guard(error, || {
        let tokenizer = &*tokenizer;
        let chosen = if plain { &tokenizer.plain } else { &tokenizer.full };
        let encoding = chosen.encode_fast(text(data, size)?, false).map_err(failure)?;
        sink(target, encoding.get_ids().as_ptr(), encoding.get_ids().len());
        Ok(())
    })
    .is_some()
}
