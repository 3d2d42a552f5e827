//! File content that arrives as base64 inside a JSON body, decoded piece by piece.
//!
//! The encoded text stays where it is, in the request's body: what is decoded at a time is one chunk. The whole text is
//! checked before the first byte goes to a sandbox, so that a wrong letter at its end leaves no trace.

use std::borrow::Cow;

use ::base64::alphabet::STANDARD;
use ::base64::engine::{DecodePaddingMode, Engine, GeneralPurpose, GeneralPurposeConfig};
use bytes::Bytes;
use futures_util::{Stream, stream};

use crate::error::ApiError;

/// Encoded bytes decoded at a time: a multiple of four, 48 KiB decoded.
const PIECE_BYTES: usize = 64 << 10;

/// Takes text with and without the `=` at its end.
const DECODER: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// Checked base64 text.
#[derive(Clone, Debug)]
pub struct Encoded {
    text: Bytes,
    /// How many bytes it stands for.
    pub decoded_bytes: u64,
}

impl Encoded {
    /// Checks `text`, which is a part of `body` or was unescaped from it. `field` is its name, for the error.
    pub fn check(text: &Cow<'_, str>, body: &Bytes, field: &str) -> Result<Self, ApiError> {
        let trimmed = text.trim_ascii_end();
        let bytes = match text {
            Cow::Borrowed(_) => body.slice_ref(trimmed.as_bytes()),
            Cow::Owned(_) => Bytes::copy_from_slice(trimmed.as_bytes()),
        };
        let mut decoded_bytes = 0;
        let mut piece = Vec::with_capacity(PIECE_BYTES);
        let mut pieces = bytes.chunks(PIECE_BYTES).peekable();
        while let Some(encoded) = pieces.next() {
            piece.clear();
            DECODER
                .decode_vec(encoded, &mut piece)
                .map_err(|error| ApiError::invalid(field, format!("{field} is not base64: {error}")))?;
            if pieces.peek().is_some() && piece.len() % 3 != 0 {
                return Err(ApiError::invalid(field, format!("{field} is not base64: '=' in the middle")));
            }
            decoded_bytes += piece.len() as u64;
        }
        Ok(Self { text: bytes, decoded_bytes })
    }

    /// The bytes, in pieces of at most 48 KiB.
    pub fn decoded<E: Send + 'static>(self) -> impl Stream<Item = Result<Bytes, E>> + Send + 'static {
        stream::unfold(self.text, |mut text| async move {
            let encoded = text.split_to(text.len().min(PIECE_BYTES));
            // Checked before; what cannot be decoded would be no bytes.
            let piece = DECODER.decode(&encoded).unwrap_or_default();
            (!encoded.is_empty()).then(|| (Ok(Bytes::from(piece)), text))
        })
    }
}

#[cfg(test)]
mod tests {
    use futures_util::StreamExt;

    use super::*;

    async fn round(bytes: &[u8], text: String) {
        let body = Bytes::from(text);
        let text = Cow::Borrowed(std::str::from_utf8(&body).unwrap());
        let encoded = Encoded::check(&text, &body, "content").unwrap();
        assert_eq!(encoded.decoded_bytes, bytes.len() as u64);
        let pieces: Vec<Bytes> = encoded.decoded::<()>().map(Result::unwrap).collect().await;
        assert!(pieces.concat() == bytes);
    }

    #[tokio::test]
    async fn what_was_encoded_comes_back() {
        for length in [0, 1, 2, 3, 4, 49_151, 49_152, 49_153, 1 << 20] {
            let bytes: Vec<u8> = (0..length).map(|n| (n * 7 + n / 256) as u8).collect();
            let text = ::base64::prelude::BASE64_STANDARD.encode(&bytes);
            round(&bytes, text.clone()).await;
            round(&bytes, text.trim_end_matches('=').to_owned()).await;
            round(&bytes, text + "\n").await;
        }
    }

    #[test]
    fn what_is_not_base64_is_refused_with_the_field() {
        let padded_middle = format!("{}=={}", "A".repeat(PIECE_BYTES - 2), "AAAA".repeat(4));
        for text in ["a", "ab!d", "=", "AA==AAAA", "äöü", padded_middle.as_str()] {
            let body = Bytes::copy_from_slice(text.as_bytes());
            let text = Cow::Borrowed(std::str::from_utf8(&body).unwrap());
            let error = Encoded::check(&text, &body, "content_base64").unwrap_err();
            assert!(error.message().starts_with("content_base64 is not base64"), "{}", error.message());
        }
    }
}
