//! What the answers should be, by implementations that share nothing with the engines.

use aes::cipher::array::Array;
use aes::cipher::{
    BlockCipherDecrypt, BlockCipherEncrypt, BlockModeDecrypt, BlockModeEncrypt, KeyInit, KeyIvInit,
    StreamCipher,
};
use aes::{Aes128, Aes192, Aes256};
use aes_gcm::aead::{AeadInOut, Nonce};
use crypto_offload::algorithm::{Aead, Cipher, Direction, Hash};
use hmac::{Hmac, Mac};
use sha2::Digest;

/// Calls a generic function with the AES of a key's length.
macro_rules! by_key {
    ($key:expr, $function:ident($($argument:expr),*)) => {
        match $key.len() {
            16 => $function::<Aes128>($($argument),*),
            24 => $function::<Aes192>($($argument),*),
            _ => $function::<Aes256>($($argument),*),
        }
    };
}

/// A plain cipher.
pub fn cipher(cipher: Cipher, direction: Direction, key: &[u8], iv: &[u8], text: &[u8]) -> Vec<u8> {
    let mut text = text.to_vec();
    match (cipher, key.len()) {
        (Cipher::AesXts, 32) => xts::<Aes128>(direction, key, iv, &mut text),
        (Cipher::AesXts, _) => xts::<Aes256>(direction, key, iv, &mut text),
        (Cipher::AesEcb, _) => by_key!(key, ecb(direction, key, &mut text)),
        (Cipher::AesCbc, _) => by_key!(key, cbc(direction, key, iv, &mut text)),
        (Cipher::AesCtr, _) => by_key!(key, ctr(key, iv, &mut text)),
    }
    text
}

fn blocks(text: &mut [u8]) -> &mut [aes::Block] {
    let (blocks, rest) = Array::slice_as_chunks_mut(text);
    assert!(rest.is_empty());
    blocks
}

fn ecb<C>(direction: Direction, key: &[u8], text: &mut [u8])
where
    C: BlockCipherEncrypt<BlockSize = aes::cipher::consts::U16> + BlockCipherDecrypt + KeyInit,
{
    let cipher = C::new_from_slice(key).expect("a key of this length");
    match direction {
        Direction::Encrypt => cipher.encrypt_blocks(blocks(text)),
        Direction::Decrypt => cipher.decrypt_blocks(blocks(text)),
    }
}

fn cbc<C>(direction: Direction, key: &[u8], iv: &[u8], text: &mut [u8])
where
    C: BlockCipherEncrypt<BlockSize = aes::cipher::consts::U16> + BlockCipherDecrypt + KeyInit,
{
    match direction {
        Direction::Encrypt => {
            cbc::Encryptor::<C>::new_from_slices(key, iv).expect("lengths").encrypt_blocks(blocks(text));
        }
        Direction::Decrypt => {
            cbc::Decryptor::<C>::new_from_slices(key, iv).expect("lengths").decrypt_blocks(blocks(text));
        }
    }
}

fn ctr<C>(key: &[u8], iv: &[u8], text: &mut [u8])
where
    C: BlockCipherEncrypt<BlockSize = aes::cipher::consts::U16> + KeyInit,
{
    ctr::Ctr128BE::<C>::new_from_slices(key, iv).expect("lengths").apply_keystream(text);
}

fn xts<C>(direction: Direction, key: &[u8], iv: &[u8], text: &mut [u8])
where
    C: BlockCipherEncrypt<BlockSize = aes::cipher::consts::U16> + BlockCipherDecrypt + KeyInit,
{
    let (first, second) = key.split_at(key.len() / 2);
    let key = |bytes| C::new_from_slice(bytes).expect("a key of this length");
    let xts = xts_mode::Xts128::new(key(first), key(second));
    let tweak = iv.try_into().expect("16 bytes");
    match direction {
        Direction::Encrypt => xts.encrypt_sector(text, tweak),
        Direction::Decrypt => xts.decrypt_sector(text, tweak),
    }
}

/// A hash, or an HMAC with a key.
pub fn digest(hash: Hash, key: Option<&[u8]>, text: &[u8]) -> Vec<u8> {
    macro_rules! with {
        ($hash:ty) => {
            match key {
                None => <$hash>::digest(text).to_vec(),
                Some(key) => {
                    let mut mac = Hmac::<$hash>::new_from_slice(key).expect("any key");
                    mac.update(text);
                    mac.finalize().into_bytes().to_vec()
                }
            }
        };
    }
    match hash {
        Hash::Sha1 => with!(sha1::Sha1),
        Hash::Sha224 => with!(sha2::Sha224),
        Hash::Sha256 => with!(sha2::Sha256),
        Hash::Sha384 => with!(sha2::Sha384),
        Hash::Sha512 => with!(sha2::Sha512),
    }
}

/// Encrypts: ciphertext and tag of 16 bytes. GCM and ChaCha20 with nonces of 96 bits, CCM with 13 bytes.
pub fn seal(aead: Aead, key: &[u8], nonce: &[u8], aad: &[u8], text: &[u8]) -> (Vec<u8>, Vec<u8>) {
    use aes::cipher::consts::{U12, U13, U16};
    match (aead, key.len()) {
        (Aead::AesGcm, 16) => encrypt::<aes_gcm::AesGcm<Aes128, U12>>(key, nonce, aad, text),
        (Aead::AesGcm, 24) => encrypt::<aes_gcm::AesGcm<Aes192, U12>>(key, nonce, aad, text),
        (Aead::AesGcm, _) => encrypt::<aes_gcm::AesGcm<Aes256, U12>>(key, nonce, aad, text),
        (Aead::AesCcm, 16) => encrypt::<ccm::Ccm<Aes128, U16, U13>>(key, nonce, aad, text),
        (Aead::AesCcm, 24) => encrypt::<ccm::Ccm<Aes192, U16, U13>>(key, nonce, aad, text),
        (Aead::AesCcm, _) => encrypt::<ccm::Ccm<Aes256, U16, U13>>(key, nonce, aad, text),
        (Aead::ChaCha20Poly1305, _) => encrypt::<chacha20poly1305::ChaCha20Poly1305>(key, nonce, aad, text),
    }
}

fn encrypt<A: AeadInOut + KeyInit>(key: &[u8], nonce: &[u8], aad: &[u8], text: &[u8]) -> (Vec<u8>, Vec<u8>) {
    let mut text = text.to_vec();
    let nonce = <&Nonce<A>>::try_from(nonce).expect("a nonce of this length");
    let aead = A::new_from_slice(key).expect("a key of this length");
    let tag =
        aead.encrypt_inout_detached(nonce, aad, text.as_mut_slice().into()).expect("no limit is reached");
    (text, tag.to_vec())
}
